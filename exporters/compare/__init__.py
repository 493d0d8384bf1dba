"""`lens compare`: run directories to questions, and answers to a terminal, Markdown, JUnit and HTML. May import
collectors and the other exporters."""
