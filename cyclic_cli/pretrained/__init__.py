"""Pretrained encoders of images and texts that a user names by a path: `--image-encoder PATH --text-encoder PATH`.

What a path holds is told by its content:

    transformers_folder.py   a folder that `save_pretrained` of transformers wrote, or a sentence-transformers folder
    open_clip_folder.py      a folder of open_clip, read with the classes of transformers
    onnx_graph.py            an ONNX file of any framework, run by ONNX Runtime
    own_run.py               a run or checkpoint of this program

    find.py                  which of these a path is, and why not
    encoder.py               the contract that all of them meet
    geometry.py              dataset images become the input of an image encoder
    tokens.py                texts become windows of tokens of a text encoder
    pooling.py               maps and token vectors become one vector per image or text
    stored.py                the copy of an encoder in a run folder, by its fingerprint

Nothing is downloaded, no code of a folder is run, and no pickle is read.
"""
