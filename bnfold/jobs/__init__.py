"""The jobs of bnfold, one module a command, and what they share: settings, gate, staging."""
