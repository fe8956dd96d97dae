"""The routes of the contract, a module for each part of it."""
