"""Names that the endpoint nodes and the gateway agree on.

The gateway fills the endpoint nodes of a graph and exchanges files with them through ComfyUI's
temporary folder. The values that only these two know are here.
"""

NO_IMAGE = "(none)"
"""Value of an endpoint's image input that got no image."""

MODEL_SETS = "(model sets)"
"""Line in the choices of Endpoint Choice that stands for the names of all model sets."""

UPLOAD_FOLDER = "artmancer"
"""Folder in ComfyUI's temporary folder that the gateway uploads images to."""

RESULT_FOLDER = "artmancer_results"
"""Folder in ComfyUI's temporary folder that Endpoint Result writes images to."""

OUTPUT, TEMP = "output", "temp"
"""Values of Endpoint Result's `folder`: ComfyUI's output folder, or RESULT_FOLDER."""
