"""Who may publish what: keys, the policy file, and the verdict on every record of the registry."""
