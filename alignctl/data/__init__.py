"""Preference rows: read, checked, rendered to token ids; and the demo data with its gold score."""
