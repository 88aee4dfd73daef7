"""PyTorch's own transformer with the weights of an Adder: the oracle of the tests, the opponent of the benchmark."""
from inspect import signature

import torch
import torch.nn as nn


def torch_attention(ours):
    """nn.MultiheadAttention that computes what our MultiHeadAttention does."""
    d_model = ours.query.weight.shape[0]
    theirs = nn.MultiheadAttention(d_model, ours.n_head, batch_first=True).to(ours.query.weight.dtype)
    copy_attention(ours, theirs)
    return theirs


def copy_attention(ours, theirs):
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.bias.zero_()


class TorchAdder(nn.Module):
    """An Adder's embeddings and logits around a torch.nn.Transformer: pre-norm, ReLU, no dropout."""

    def __init__(self, ours):
        super().__init__()
        d_model, d_ff = ours.token_embedding.embedding_dim, ours.encoder[0].feed_forward[0].out_features
        self.token_embedding, self.to_logits = ours.token_embedding, ours.to_logits
        self.source_position, self.target_position = ours.source_position, ours.target_position
        self.transformer = nn.Transformer(d_model, ours.encoder[0].self_attention.n_head, len(ours.encoder),
                                          len(ours.decoder), d_ff, dropout=0.0, batch_first=True, norm_first=True)
        self.transformer.to(ours.token_embedding.weight.dtype)
        for theirs, block in zip(self.transformer.encoder.layers, ours.encoder):
            copy_attention(block.self_attention, theirs.self_attn)
            self.copy_rest(theirs, block, ["norm1", "norm2"])
        for theirs, block in zip(self.transformer.decoder.layers, ours.decoder):
            copy_attention(block.self_attention, theirs.self_attn)
            copy_attention(block.cross_attention, theirs.multihead_attn)
            self.copy_rest(theirs, block, ["norm1", "norm2", "norm3"])
        self.transformer.encoder.norm.load_state_dict(ours.encoder_norm.state_dict())
        self.transformer.decoder.norm.load_state_dict(ours.decoder_norm.state_dict())

    @staticmethod
    def copy_rest(theirs, block, norms):
        for name in norms:
            getattr(theirs, name).load_state_dict(getattr(block, name).state_dict())
        theirs.linear1.load_state_dict(block.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(block.feed_forward[2].state_dict())

    def forward(self, source, target):
        start = torch.full_like(target[:, :1], 11)
        answer = torch.cat([start, target[:, :-1]], dim=1)
        x = self.token_embedding(source) + self.source_position.weight
        y = self.token_embedding(answer) + self.target_position.weight
        hidden = nn.Transformer.generate_square_subsequent_mask(answer.shape[1]).to(y)
        told = {"tgt_is_causal": True} if "tgt_is_causal" in signature(self.transformer.forward).parameters else {}
        return self.to_logits(self.transformer(x, y, tgt_mask=hidden, **told))  # torch 2.0 finds out by itself
