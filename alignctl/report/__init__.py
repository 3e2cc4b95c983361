"""What a person sees: the live panel, plain lines, the closing table."""
