"""Updates and reports that are carried by hand."""
