"""What a user's data tell: what goes into each BatchNormalization, and accuracy on labels."""
