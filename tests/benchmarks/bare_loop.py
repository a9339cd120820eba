"""The baseline: the same work in a bare torch loop, one process, nothing around it."""

from work import ROUNDS, SITES, average, initial, train

state = initial()
for round_ in range(ROUNDS):
    replies = [train(state, site, round_) for site in range(SITES)]
    state = average([weights for weights, _, _ in replies])
    print(f"round {round_ + 1}: loss {sum(loss for *_, loss in replies) / SITES:.4f}", flush=True)
