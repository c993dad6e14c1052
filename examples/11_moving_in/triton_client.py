"""A client of Triton, as it is: it asks the gateway of a job, which needs a token.

python triton_client.py endpoint.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as http

endpoint = json.loads(Path(sys.argv[1]).read_text())
headers = {"Authorization": f"Bearer {endpoint['token']}"}
images = (np.arange(2 * 3 * 24 * 32) % 23 / 16).astype(np.float32).reshape(2, 3, 24, 32)

client = http.InferenceServerClient(endpoint["url"].removeprefix("http://"))
given = http.InferInput("INPUT__0", images.shape, "FP32")
given.set_data_from_numpy(images)
wanted = http.InferRequestedOutput("OUTPUT__0")
result = client.infer("image", [given], outputs=[wanted], headers=headers)
print("outside", 0, *(f"{value:.8e}" for value in result.as_numpy("OUTPUT__0").ravel()))
