"""Channel ids: which channels, heads, neurons and hidden units of a model live and die together, and their removal."""

from onnxopt.analysis.axes.engine import Channels, channel_ids
from onnxopt.analysis.axes.groups import ChannelGroup, groups
from onnxopt.analysis.axes.ids import Freeze
from onnxopt.analysis.axes.losses import Frozen, frozen, lost_to
from onnxopt.analysis.axes.masking import masking
from onnxopt.analysis.axes.plan import removal
from onnxopt.analysis.axes.weights import Weight

__all__ = [
    "ChannelGroup", "Channels", "Freeze", "Frozen", "Weight", "channel_ids", "frozen", "groups", "lost_to", "masking",
    "removal",
]  # fmt: skip
