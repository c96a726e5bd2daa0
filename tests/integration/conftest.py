"""The real packages import torchvision, which may be built for another torch here: see `sogclr.models.torchvision_cpu`."""

from sogclr.models.torchvision_cpu import import_timm

import_timm()
collect_ignore = ["peers_as_ours.py"]  # a plugin, and no test
