"""What modelcast is measured against, each with a pinned environment of its own. Nothing here imports modelcast."""
