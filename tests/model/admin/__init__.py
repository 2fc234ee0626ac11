"""Admin commands: framed by the standard, refused without a trace, and watched for broken rules."""
