"""Who may do what on a secured cluster: the ACLs that each role of modelcast needs, and no more."""
