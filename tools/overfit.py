"""Can the model learn a few batches by heart? (python train.py --overfit N)

If not, something is wrong before the data is.
"""

from collections.abc import Callable

from tools.rehearse import Kept, quiet_trainer, rehearsal

N_STEPS = 300
NEAR_ZERO = 0.1  # of the first loss


def overfit(build: Callable, config: dict, n_batches: int) -> bool:
    """Train on the first batches again and again; print and return whether the loss went near 0."""
    with rehearsal() as folder:
        trainer = quiet_trainer(
            build,
            config,
            folder,
            epochs=N_STEPS,
            save_period=N_STEPS + 1,
            len_epoch=n_batches,
            max_steps=None,
        )
        trainer.data_loader = Kept(trainer.data_loader, n_batches)
        trainer.len_epoch = n_batches = len(trainer.data_loader)  # the data may have fewer
        n_epochs = max(2, N_STEPS // n_batches)
        losses = []
        for epoch in range(1, n_epochs + 1):
            losses.append(float(trainer._train_epoch(epoch)['loss']))
            trainer.position = 0
            if epoch in (1, 2, 5) or epoch % max(1, n_epochs // 10) == 0:
                print(f'pass {epoch:4d}: loss {losses[-1]:.5f}', flush=True)
        trainer.writer.close()
    learned = min(losses) <= NEAR_ZERO * abs(losses[0])
    print(
        f'The loss went from {losses[0]:.5f} to {min(losses):.5f} in {n_epochs * n_batches} steps: '
        + (
            'near zero, as it should.'
            if learned
            else 'NOT near zero. Look at the learning rate, at strong dropout or augmentation, at '
            'what the loss expects of the output, and at whether the targets belong to the inputs.'
        )
    )
    return learned
