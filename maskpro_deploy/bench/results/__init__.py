"""What the results of all benchmarks share: the run as data, columns of its tables, and the document that describes it.

What enters: measurements. What leaves: `result.json` (`run`), and a `Document` of tables (`document`), of which stdout, report.md
and report.html are made. `reading` reads results back, `wording` puts comparisons into words. May import: the root files of
`bench`.
"""
