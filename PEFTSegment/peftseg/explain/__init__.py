"""What an adapted network looks at: Grad-CAM, ProtoSeg, and checks of both. Importing this package does not import torch."""
