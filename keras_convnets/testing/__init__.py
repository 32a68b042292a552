"""The conformance kit: what every family of the package passes, and a user's own family can."""
