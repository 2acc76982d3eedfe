"""What the HTTP API says: one module for each endpoint's requests and answers, and what they share."""
