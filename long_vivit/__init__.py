"""Long ViViT: contrastive encoders of long videos, trained in stages."""
