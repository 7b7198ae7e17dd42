"""Models a practitioner would use instead: the rows that the learned representation must beat."""
