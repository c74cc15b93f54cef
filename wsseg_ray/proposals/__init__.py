"""Region proposals: their algebra (`regions`), and where they come from (`generate`, `mcg`, `masks`)."""
