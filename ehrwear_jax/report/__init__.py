"""Reports results: tables, figures and one self-contained HTML page from given numbers."""
