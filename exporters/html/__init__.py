"""The report of one or several runs as one HTML file: `page.write_html`.

`timeline` merges ticks, `curves` makes percentile curves of histograms, `run` reads a run directory with both, `charts`
is what report.js draws, `markup` builds HTML, `page` puts it together with the files of `exporters/assets`.
"""
