"""Cross-image contextual refinement (Sec. 3.2): Eq. (1), and which candidates are kept."""
