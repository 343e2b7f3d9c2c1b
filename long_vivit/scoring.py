"""How a stage is scored: retrieval by its own view of the videos."""

from long_vivit import recipe, retrieval


def score_stage(model, stage, tools, source, frame_orders=('ordered',), view=None):
    """`retrieval.score` as the stage says; `view`: another than the one it has of its data."""
    return retrieval.score(
        model, source, view or recipe.eval_view(tools.run, stage), tools.tokenizer,
        batch=stage.eval_batch, threads=tools.threads, frame_orders=frame_orders,
        allow_broken=tools.run.eval.allow_broken, mesh=tools.mesh,
    )  # fmt: skip
