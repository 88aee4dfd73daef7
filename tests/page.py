"""Put the models of out folders where out/explorer.html finds them.

    python -m tests.page [OUT_DIR ...]    (default: out)

Writes addition/model.js (with the idle heads, if they are known) and sorting/models.js (all
settings) into each folder, from the models of seed 1 that are there. A page opened from a file
can load scripts, but no other files. Type it again after a training.
"""
import argparse
import base64
import json
from pathlib import Path

import torch

import common

def for_page(path):
    """The model in a file as JSON: its config, and its weights as base64 of float32."""
    saved = torch.load(path, weights_only=True)
    for name, x in saved["weights"].items():
        saved["weights"][name] = {"shape": x.shape,
                                  "data": base64.b64encode(x.numpy()).decode()}
    return saved

def save_script(path, files, **more):
    """Write a script with the models in files, if there are any."""
    models = {file.parent.name: for_page(file) for file in sorted(files)}
    text = f"loaded = {json.dumps({**models, **more})}\n"
    if models:
        common.write(path, lambda temporary: temporary.write_text(text))

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dirs", nargs="*", default=["out"])
    for out in map(Path, parser.parse_args().out_dirs):
        ablation = out / "addition/head_analysis/ablation.json"
        idle = common.load_json(ablation)["idle"] if ablation.exists() else []
        save_script(out / "addition/model.js", out.glob("addition/best_model.pth"), idle=idle)
        save_script(out / "sorting/models.js", out.glob("sorting/*/best_model.pth"))

if __name__ == "__main__":
    main()
