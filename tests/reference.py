"""PyTorch's transformer with the weights of an Adder: the oracle of the tests."""
import warnings

import torch
import torch.nn as nn

@torch.no_grad()
def copy_attention(ours, theirs):
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
    theirs.out_proj.weight.copy_(ours.output.weight)  # their biases are zero from the start

def torch_attention(ours):
    """An nn.MultiheadAttention that computes what our MultiHeadAttention does."""
    theirs = nn.MultiheadAttention(ours.query.in_features, ours.n_head, batch_first=True)
    theirs.to(ours.query.weight.dtype)
    copy_attention(ours, theirs)
    return theirs

class TorchAdder(nn.Module):
    """The embeddings and logits of an Adder around a torch.nn.Transformer: pre-norm, ReLU."""

    def __init__(self, ours):
        super().__init__()
        self.args = args = ours.args
        self.token_embedding = ours.token_embedding
        self.source_position = ours.source_position
        self.target_position = ours.target_position
        self.to_logits = ours.to_logits
        sizes = [args.d_model, args.n_head, args.n_layer, args.n_layer, args.d_ff]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="enable_nested_tensor")
            self.transformer = nn.Transformer(*sizes, dropout=0, batch_first=True, norm_first=True)
        self.transformer.to(ours.to_logits.weight.dtype)
        encoder = self.transformer.encoder
        decoder = self.transformer.decoder
        pairs = [(ours.encoder_norm, encoder.norm), (ours.decoder_norm, decoder.norm)]
        for block, layer in zip([*ours.encoder, *ours.decoder], [*encoder.layers, *decoder.layers]):
            copy_attention(block.self_attention, layer.self_attn)
            pairs += [(block.norm1, layer.norm1), (block.feed_forward[0], layer.linear1),
                      (block.feed_forward[2], layer.linear2)]
        pairs += [(block.norm3, layer.norm2) for block, layer in zip(ours.encoder, encoder.layers)]
        for block, layer in zip(ours.decoder, decoder.layers):
            copy_attention(block.cross_attention, layer.multihead_attn)
            pairs += [(block.norm2, layer.norm2), (block.norm3, layer.norm3)]
        for module, theirs in pairs:
            theirs.load_state_dict(module.state_dict())

    def forward(self, source, target):
        start = torch.full_like(target[:, :1], 11)
        answer = torch.cat([start, target[:, :-1]], dim=1)
        x = self.token_embedding(source) + self.source_position.weight
        y = self.token_embedding(answer) + self.target_position.weight
        mask = nn.Transformer.generate_square_subsequent_mask(answer.shape[1]).to(y)
        causal = {"tgt_is_causal": True} if torch.__version__ >= "2.1" else {}  # 2.0 finds out
        return self.to_logits(self.transformer(x, y, tgt_mask=mask, **causal))
