"""Methods as formulas, diagrams and documents."""
