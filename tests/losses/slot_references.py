"""Slow versions of SlotCon's parts, written from the description of the method alone: one loop per sum sign."""

import torch

from tests.losses.references import pixels, softmax


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / torch.sqrt(sum(x * x for x in a)) / torch.sqrt(sum(y * y for y in b))


def scores(z, prototypes):
    """Cosine of each pixel of (N, D, h, w) with each of (K, D) prototypes: (N, K, h, w)."""
    N, _, H, W = z.shape
    rows = [cosine(z[n, :, i, j], p) for n in range(N) for p in prototypes for i in range(H) for j in range(W)]
    return torch.stack(rows).reshape(N, len(prototypes), H, W)


def slots(z, s, temperature):
    """Mean over pixels of z, weighted by the softmax over prototypes plus 1e-6: (N, K, D)."""
    N, K, H, W = s.shape
    result = []
    for n in range(N):
        weights = {}
        for i in range(H):
            for j in range(W):
                weights[i, j] = [share + 1e-6 for share in softmax([s[n, k, i, j] / temperature for k in range(K)])]
        for k in range(K):
            total = sum(w[k] for w in weights.values())
            result.append(sum(w[k] * z[n, :, i, j] for (i, j), w in weights.items()) / total)
    return torch.stack(result).reshape(N, K, -1)


def active(s):
    """For each image, the set of prototypes that have the best score at some pixel."""
    N, K = s.shape[:2]
    found = [set() for _ in range(N)]
    for n, i, j in pixels(s):
        values = [s[n, k, i, j].item() for k in range(K)]
        found[n].add(values.index(max(values)))
    return found


def grouping(a, at, center, student_temperature, teacher_temperature):
    """Mean over pixels of the cross-entropy of the student's aligned scores against the teacher's, a constant."""
    K, terms = a.shape[1], []
    for n, i, j in pixels(a):
        q = softmax([a[n, k, i, j] / student_temperature for k in range(K)])
        t = softmax([(at[n, k, i, j].detach() - center[k]) / teacher_temperature for k in range(K)])
        terms.append(-sum(t[k] * torch.log(q[k]) for k in range(K)))
    return sum(terms) / len(terms)


def contrast(g, s, gt, st, predict, temperature):
    """InfoNCE of the slots that are active for the student here and for the teacher there, times 2 * temperature.

    The other candidates are all active slots of the teacher, of all images. predict maps (R, D) to (R, D).
    """
    here, there = active(s), active(st)
    keys = [(n, k) for n, found in enumerate(there) for k in sorted(found)]
    queries = [(n, k) for n, k in keys if k in here[n]]
    predictions = predict(torch.stack([g[n, k] for n, k in queries]))
    terms = []
    for query, p in zip(queries, predictions, strict=True):
        probabilities = softmax([cosine(p, gt[n, k].detach()) / temperature for n, k in keys])
        terms.append(-torch.log(probabilities[keys.index(query)]))
    return 2 * temperature * sum(terms) / len(terms)


def center(old, st1, st2, momentum):
    """Old centre, moved towards the mean over all pixels of both views."""
    new = []
    for k in range(len(old)):
        values = [st[n, k, i, j] for st in (st1, st2) for n, i, j in pixels(st)]
        new.append(momentum * old[k] + (1 - momentum) * sum(values) / len(values))
    return torch.stack(new)
