"""The models: a segmentation, measurements of cells, a search for a signature, a language model."""

import torch
from data import LENGTH, SIGNATURE, WORDS
from torch import nn

WIDTH = 32


class Segmenter(nn.Module):
    """The probability that each pixel belongs to a cell: a smooth image, and a limit."""

    def __init__(self):
        super().__init__()
        x = torch.arange(-2.0, 3.0)
        row = torch.exp(-(x**2) / 2)
        kernel = row[:, None] * row
        self.kernel = nn.Parameter((kernel / kernel.sum())[None, None])

    def forward(self, images):
        smooth = nn.functional.conv2d(images[:, None], self.kernel, padding=2)[:, 0]
        return torch.sigmoid(40 * (smooth - 0.42))


class Features(nn.Module):
    """Area, mean brightness, and elongation of the cell of each crop."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.arange(24.0))

    def forward(self, crops, masks):
        area = masks.sum((1, 2)).clamp(min=1)
        mean = (crops * masks).sum((1, 2)) / area
        rows, columns = masks.sum(2) / area[:, None], masks.sum(1) / area[:, None]
        spread = [self.variance(rows), self.variance(columns)]
        ratio = torch.maximum(*spread) / torch.minimum(*spread).clamp(min=1e-3)
        return torch.stack([area, mean, ratio.sqrt()], 1)

    def variance(self, share):
        middle = (share * self.at).sum(1, keepdim=True)
        return (share * (self.at - middle) ** 2).sum(1)


class Scanner(nn.Module):
    """The place of each window that is most like the signature, and how many bases are."""

    def __init__(self):
        super().__init__()
        one_hot = nn.functional.one_hot(torch.tensor(SIGNATURE), 4).float()
        self.matrix = nn.Parameter(one_hot.T[None])

    def forward(self, bases):
        one_hot = nn.functional.one_hot(bases, 4).float().transpose(1, 2)
        scores = nn.functional.conv1d(one_hot, self.matrix)[:, 0]
        return scores.max(1)


class LanguageModel(nn.Module):
    """A small transformer: the probabilities of the word after each one."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 64, dropout=0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(WIDTH, WORDS)

    def logits(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.words(tokens) + self.places.weight[:length]
        return self.out(self.layer(hidden, mask))

    def forward(self, tokens):
        return self.logits(tokens).softmax(-1)
