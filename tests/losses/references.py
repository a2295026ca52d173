"""Slow versions of the losses, written from the description of the method alone: one loop per sum sign.

Scalars are torch tensors, so that autograd of the loops can be compared too. Letters: N images, K clusters, M regions.
"""

import math

import torch


def softmax(logits):
    """Softmax of a list of scalars, as a list."""
    exponentials = [torch.exp(x) for x in logits]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def pixels(maps):
    """Yield (image, row, column) of every pixel of (N, K, H, W) maps."""
    N, _, H, W = maps.shape
    for n in range(N):
        for i in range(H):
            for j in range(W):
                yield n, i, j


def soft_cross_entropy(prediction, target):
    """Mean over pixels of -sum_c softmax(target)_c log softmax(prediction)_c; the target is a constant."""
    K = prediction.shape[1]
    terms = []
    for n, i, j in pixels(prediction):
        p = softmax([prediction[n, c, i, j] for c in range(K)])
        t = softmax([target[n, c, i, j].detach() for c in range(K)])
        terms.append(-sum(t[c] * torch.log(p[c]) for c in range(K)))
    return sum(terms) / len(terms)


def negative_cosine(prediction, target):
    """Mean over pixels of -cos between the channel vectors; the target is a constant."""
    terms = []
    for n, i, j in pixels(prediction):
        p, t = prediction[n, :, i, j], target[n, :, i, j].detach()
        dot = sum(a * b for a, b in zip(p, t, strict=True))
        terms.append(-dot / torch.sqrt(sum(a * a for a in p)) / torch.sqrt(sum(b * b for b in t)))
    return sum(terms) / len(terms)


def symmetric(similarity, p1, z2, p2, z1):
    """Half of each direction."""
    return 0.5 * similarity(p1, z2) + 0.5 * similarity(p2, z1)


def pseudo_label_loss(logits, rebalance=True):
    """Cross-entropy against the own argmax, times the frequency of that label in the batch, plain mean over pixels."""
    K = logits.shape[1]
    labels = {}
    counts = [0] * K
    for n, i, j in pixels(logits):
        scores = [logits[n, c, i, j].item() for c in range(K)]
        labels[n, i, j] = scores.index(max(scores))
        counts[labels[n, i, j]] += 1
    terms = []
    for n, i, j in pixels(logits):
        y = labels[n, i, j]
        probability = softmax([logits[n, c, i, j] for c in range(K)])[y]
        weight = counts[y] / sum(counts) if rebalance else 1.0
        terms.append(-weight * torch.log(probability))
    return sum(terms) / len(terms)


def balanced(logits, iterations=3):
    """The assignment (N, K, H, W) of Sinkhorn and Knopp: clusters to the sum 1, then points, and so on."""
    K, q = logits.shape[1], logits.detach().exp()
    for _ in range(iterations):
        for k in range(K):
            total = sum(q[n, k, i, j].item() for n, i, j in pixels(q))
            q[:, k] = q[:, k] / total
        for n, i, j in pixels(q):
            q[n, :, i, j] = q[n, :, i, j] / sum(q[n, k, i, j].item() for k in range(K))
    return q


def pool_regions(features, logits):
    """Sum over pixels of softmax(logits)_m times the feature vector: (N, M, C)."""
    N, M, H, W = logits.shape
    rows = []
    for n in range(N):
        pooled = [torch.zeros_like(features[n, :, 0, 0]) for _ in range(M)]
        for i in range(H):
            for j in range(W):
                mask = softmax([logits[n, m, i, j] for m in range(M)])
                for m in range(M):
                    pooled[m] = pooled[m] + mask[m] * features[n, :, i, j]
        rows.append(torch.stack(pooled))
    return torch.stack(rows)


def region_infonce(prediction, target, temperature=0.1):
    """One direction: the positive of region m is region m of the other view, the negatives its other regions."""
    N, M, _ = prediction.shape
    terms = []
    for n in range(N):
        for m in range(M):
            p = prediction[n, m] / torch.sqrt(sum(a * a for a in prediction[n, m]))
            scores = []
            for k in range(M):
                t = target[n, k] / torch.sqrt(sum(a * a for a in target[n, k]))
                scores.append(sum(a * b for a, b in zip(p, t, strict=True)) / temperature)
            terms.append(-torch.log(softmax(scores)[m]))
    return sum(terms) / len(terms)


def region_cosine(prediction, target):
    """One direction: mean over regions of -cos; the target is a constant."""
    N, M, _ = prediction.shape
    terms = []
    for n in range(N):
        for m in range(M):
            p, t = prediction[n, m], target[n, m].detach()
            dot = sum(a * b for a, b in zip(p, t, strict=True))
            terms.append(-dot / torch.sqrt(sum(a * a for a in p)) / torch.sqrt(sum(b * b for b in t)))
    return sum(terms) / len(terms)


def released_segmentation_losses(main, aux, f1, f2, region_projector, region_predictor, region_weight=0.1):
    """All losses of the released unsupervised segmentation, weighted.

    Args:
        main, aux: dicts with z1, z2, p1, p2, each (N, K, S, S) logits of that classifier in aligned pixels.
        f1, f2: aligned decoder features, (N, C, S, S).
        region_projector, region_predictor: functions on (rows, C).
        region_weight: 0.1 in the last fifth of training, else 0.
    """
    K, K_aux = main["z1"].shape[1], aux["z1"].shape[1]
    s, a = math.log(K), math.log(K_aux)
    similarity, similarity_aux = (
        symmetric(soft_cross_entropy, h["p1"], h["z2"], h["p2"], h["z1"]) for h in (main, aux)
    )
    r1, r2 = pool_regions(f1, main["z1"]), pool_regions(f2, main["z2"])
    shape = (r1.shape[0], r1.shape[1], -1)
    zr1, zr2 = region_projector(r1.flatten(0, 1)), region_projector(r2.flatten(0, 1))
    pr1, pr2 = region_predictor(zr1), region_predictor(zr2)
    zr1, zr2, pr1, pr2 = (t.reshape(shape) for t in (zr1, zr2, pr1, pr2))
    return {
        "loss_pixel": a / (a + s) * similarity,
        "loss_pixel_aux": s / (a + s) * similarity_aux,
        "loss_sem_seg": 0.5 * (pseudo_label_loss(main["z1"]) + pseudo_label_loss(main["z2"])),
        "loss_region": region_weight * 0.5 * (region_infonce(pr1, zr2) + region_infonce(pr2, zr1)),
    }
