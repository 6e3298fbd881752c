"""nnunet-anomaly: segmentation where anatomy is abnormal, as a plug-in for nnU-Net v2."""

__version__ = "0.1.0"
