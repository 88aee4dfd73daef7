"""What both models are compared with: PyTorch's transformer, and heads that are made up."""
import torch
import torch.nn as nn

from attention_addition import heads_of

def gradient(output, inputs):
    return torch.autograd.grad(output.norm(), inputs)

def torch_attention(ours):
    """An nn.MultiheadAttention that computes what our MultiHeadAttention does."""
    w = ours.query.weight
    theirs = nn.MultiheadAttention(len(w), ours.n_head, batch_first=True, dtype=w.dtype)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([w, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
    return theirs  # its biases are zero from the start

def torch_layer(kind, config, block, attention):
    """A layer of torch.nn.Transformer, pre-norm, with the weights of a block."""
    layer = kind(config.d_model, config.n_head, config.d_ff, 0, batch_first=True, norm_first=True)
    layer.self_attn = torch_attention(attention)
    layer.norm1, layer.norm2 = block.norm_self, block.norm_ff
    layer.linear1, _, layer.linear2 = block.feed_forward
    return layer

def torch_logits(ours, source, target):
    """What an Adder computes, by the layers of torch.nn.Transformer."""
    answer = target.roll(1, 1)
    answer[:, 0] = 11
    x = ours.token_embedding(source) + ours.source_position.weight
    y = ours.token_embedding(answer) + ours.target_position.weight
    for block in ours.encoder:
        layer = torch_layer(nn.TransformerEncoderLayer, ours.config, block, block.self_attention)
        x = layer(x)
    hidden = torch.ones(3, 3).triu(1).bool()
    for block in ours.decoder:
        layer = torch_layer(nn.TransformerDecoderLayer, ours.config, block, block.self_attention)
        layer.multihead_attn = torch_attention(block.cross_attention)
        layer.norm2, layer.norm3 = block.norm_cross, block.norm_ff
        y = layer(y, ours.encoder_norm(x), tgt_mask=hidden)
    return ours.to_logits(ours.decoder_norm(y))

GROUPS = {"nothing": ["dec.L0.H0"], "carry": ["enc.L0.H0"], "column": ["enc.L0.H2"],
          "both": ["enc.L0.H3"]}  # what the heads of made_up_run() bring

def made_up_run(model, problems, replace={}):
    """Like run(), of a model that adds as we do by hand. A head puts out the problem."""
    both = replace.get("enc.L0.H3", problems)
    upper = replace.get("enc.L0.H2", both)
    lower = replace.get("enc.L0.H0", both)
    answer = []
    for power in (100, 10, 1):
        mixed = upper // power * power + lower % power  # digits of two problems
        answer.append(mixed.sum(1) // power % 10)
    return torch.stack(answer, 1), None, dict.fromkeys(heads_of(model), problems)
