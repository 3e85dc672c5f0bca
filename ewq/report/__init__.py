"""Stored records as people read them: terminal, Markdown, JSON and HTML."""
