"""Tables, statistics, figures and pages of finished runs: the command `metaopt-report`.

`collect` reads run folders, `settings` what an experiment's YAML says about its report, `tables`
and `stats` make tables of them, `notes` the lines below, `sweep_figures` the figures, `command`
writes it all. Problems use `table` (any table of texts), `figures` (the house style) and `page`
(Markdown and HTML). Nothing is imported here, so that each part costs what it needs.
"""
