"""Method and site map to plan; the literal evaluator and the rewrites (lowerings) that are tested against it."""
