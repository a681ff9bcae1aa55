"""The embedded default: tiny OLMoE checkpoints, their worlds and test items, and their build."""
