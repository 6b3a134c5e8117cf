"""Made-up facts in plain sentences, and questions that ask for them: for training and for measuring."""
