"""A sweep for people: its answer in words, points.csv, and its curves as one HTML file. May import collectors and the
other exporters; the files of its runs are theirs."""
