"""The real Dynamo on this machine: its frontend and router, and mockers as engines."""
