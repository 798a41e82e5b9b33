"""The paper's networks: one template, and tables as data."""
