"""One straight function per verb."""
