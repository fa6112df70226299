"""A scorer in a folder: it ranks as in its run, and `metaopt-score` re-ranks a BEIR folder."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_rankers import small_world, tiny_encoder, write_beir

from metaopt.cli.scoring import main
from metaopt.engine.inner_optimizers import SGD
from metaopt.files.errors import FolderError
from metaopt.problems.few_shot_ranking.export import export
from metaopt.problems.few_shot_ranking.fine_tuning import FineTuning
from metaopt.problems.few_shot_ranking.pair_scorer import PairScorer
from metaopt.problems.few_shot_ranking.problem import FewShotRanking
from metaopt.problems.few_shot_ranking.relevance_feedback import relevance_pools
from metaopt.problems.few_shot_ranking.saved_ranker import SavedRanker

TEN = {
    f"d{i}": text
    for i, text in enumerate([
        "topic0x1 aspect0x1 aspect0x2", "topic0x2 aspect1x1", "topic0x1 aspect1x2", "topic1x1",
        "topic0x3 aspect0x3", "topic2x2 aspect2x1", "topic0x4 aspect2x2", "topic0x1 aspect1x3",
        "topic3x1", "topic0x5 aspect0x4",
    ])
}  # fmt: skip
MARKS = ["--relevant", "d0", "--irrelevant", "d1", "d2"]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.delenv("METAOPT_CACHE", raising=False)  # it would round features


@pytest.fixture(scope="module", params=[False, True], ids=["query", "marked"])
def made(request, tmp_path_factory):
    """Return a problem on a tiny encoder, phi, and the folder of its run."""
    folder = tmp_path_factory.mktemp("run")
    world = small_world()
    encoder = tiny_encoder(folder / "encoder", [*world.documents.values(), *world.queries.values()])
    pools = relevance_pools(world, encoder, shots=2, size=40)
    tuning = FineTuning(rates=(0.3,), steps=(3,))
    problem = FewShotRanking(
        pools,
        PairScorer(widths=(8,), marked=request.param),
        SGD(lr=0.3),
        shots=(1, 2),
        fine_tuning=tuning,
        proximal=0.1,
    )
    phi = problem.init_outer(torch.Generator().manual_seed(0))
    phi = {k: v + 0.3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
           for k, v in phi.items()}  # fmt: skip
    assert export(problem, phi, folder) == folder / "ranker"
    return problem, phi, folder, world


def test_a_saved_ranker_ranks_as_in_its_run(made):
    problem, phi, folder, world = made
    ranker, pools = SavedRanker(folder / "ranker"), problem.pools
    names = {text: name for name, text in world.documents.items()}
    for q, text in enumerate(pools.texts[0][:3]):
        ids = [names[pools.texts[1][row]] for row in pools.pool[q]]
        marked = [[ids[i] for i in kind] for kind in pools.feedback[q].tolist()]
        for fuse in (False, True):
            ranked = ranker(text, world.documents, *marked, fuse=fuse)
            query = torch.tensor([q])
            (scores,) = problem.fine_tuned(phi, query, 2, {(0.3, 3)}).values()
            out = pools.left_out[query]
            scores = scores.masked_fill(out, -torch.inf)
            if fuse:
                from metaopt.problems.few_shot_ranking.metrics import reciprocal_rank_fusion

                longer = pools.expanded[1][query].masked_fill(out, -torch.inf)
                scores = reciprocal_rank_fusion(scores, longer)
            order = scores[0].argsort(descending=True, stable=True)[:36].tolist()
            assert ranked.scores == pytest.approx(scores[0][order].tolist(), abs=1e-4)
            assert ranked.ids == [ids[i] for i in order]
            assert ranked.first_stage == [i + 1 for i in order]


def test_marks_outside_the_pool_count_and_are_not_ranked(made):
    *_, folder, _ = made
    ranker = SavedRanker(folder / "ranker")
    ranker.about["first_stage"]["size"] = 4
    plain = ranker("topic0x1", TEN)
    assert len(plain.ids) == 4
    absent = next(name for name in TEN if name not in plain.ids)
    ranked = ranker("topic0x1", TEN, [absent], [plain.ids[0]])
    assert sorted(ranked.ids) == sorted(plain.ids[1:])
    other = ranker("topic0x1", TEN, [plain.ids[1]], [plain.ids[0]])
    assert dict(zip(ranked.ids, ranked.scores, strict=True))[plain.ids[2]] != pytest.approx(
        dict(zip(other.ids, other.scores, strict=True))[plain.ids[2]]
    )


def test_a_beir_folder_of_ten_documents_is_re_ranked(made, tmp_path, capsys):
    *_, folder, _ = made
    root = write_beir(tmp_path / "mine", small_world()._replace(documents=TEN, gains={}))
    arguments = [str(folder), str(root), "--query", "topic0x1", *MARKS]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (root / "ranked.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in rows] == [*range(1, 8)]
    assert {row["_id"] for row in rows} == {*TEN} - {"d0", "d1", "d2"}
    assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
    printed = capsys.readouterr().out
    assert f"{rows[0]['bm25_rank']:>4}  {rows[0]['_id']}  {TEN[rows[0]['_id']]}" in printed
    assert f"7 documents of 1 query written to {root / 'ranked.jsonl'}" in printed
    with pytest.raises(ValueError, match=r"ranked\.jsonl exists\. Delete it"):
        main(arguments)
    out = ["--out", str(tmp_path / "knn.jsonl"), "--ranking", "knn", "--fuse"]
    assert main([*arguments[:4], "--relevant", "d0", *out]) == 0
    assert (tmp_path / "knn.jsonl").read_text() != (root / "ranked.jsonl").read_text()


def test_it_is_said_where_marks_change_nothing(made, tmp_path, capsys):
    *_, folder, _ = made
    root = write_beir(tmp_path / "mine", small_world()._replace(documents=TEN, gains={}))
    ranker = tmp_path / "ranker"
    shutil.copytree(folder / "ranker", ranker)
    settings = json.loads((ranker / "ranker.json").read_text())
    arguments = [str(root), "--query", "topic0x1", *MARKS, "--out"]
    assert main([str(ranker), *arguments, str(tmp_path / "a")]) == 0
    assert not capsys.readouterr().err
    settings["tuned"] = {"1": [0.3, 0], "2": [0.3, 5]}
    (ranker / "ranker.json").write_text(json.dumps(settings))
    assert main([str(ranker), *arguments, str(tmp_path / "b")]) == 0
    assert "0 steps of fine-tuning were best" in capsys.readouterr().err


def test_marks_of_several_queries_are_those_of_one_at_a_time(made, tmp_path):
    *_, folder, _ = made
    world = small_world()._replace(queries={"q1": "topic0x1", "q2": "topic0x2"}, gains={})
    root = write_beir(tmp_path / "mine", world._replace(documents=TEN))
    marks = tmp_path / "marks.tsv"
    marks.write_text(
        "query-id\tcorpus-id\tscore\nq2\td4\t1\nq1\td0\t1\nq1\td1\t0\nq1\td2\t0\nq2\td3\t0\n"
    )
    assert main([str(folder), str(root), "--marks", str(marks)]) == 0
    rows = [json.loads(line) for line in (root / "ranked.jsonl").read_text().splitlines()]
    main([str(folder), str(root), "--query", "topic0x1", *MARKS, "--out", str(tmp_path / "o")])
    one = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    assert [r | {"query": "q1"} for r in one] == [r for r in rows if r["query"] == "q1"]
    assert [row["query"] for row in rows] == ["q2"] * 8 + ["q1"] * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "re-ranking takes --query TEXT with --relevant and --irrelevant, or --marks TSV"),
        (["--query", "a", "--relevant", "d77", "--irrelevant", "d0"], "there is no document 'd77'"),
        (["--query", "a", "--relevant", "d0", "--irrelevant", "d0"], "'d0' is marked twice"),
        (["--query", " "], "the query has no text"),
        (["--query", "topic0x1", "--out", "nowhere/o.jsonl"], "there is no folder nowhere"),
        (
            ["--query", "a", "--relevant", "d0", "--irrelevant", *sorted({*TEN} - {"d0"})],
            "all 10 documents .* are marked: none is left",
        ),
        (["--query", "a", "--relevant", "d0"], "got 1 and 0 of them for .* Mark one of each"),
        (["--query", "a", "--top", "0.5"], "--top is not of re-ranking"),
        (["--marks", "marks.tsv", "--relevant", "d0"], "belong to --query"),
    ],
)
def test_what_cannot_be_ranked_is_refused_and_nothing_is_written(
    made, tmp_path, arguments, message
):
    *_, folder, _ = made
    root = write_beir(tmp_path / "mine", small_world()._replace(documents=TEN, gains={}))
    with pytest.raises(ValueError, match=message):
        main([str(folder), str(root), *arguments])
    assert not (root / "ranked.jsonl").exists()


def test_other_folders_are_refused(made, tmp_path):
    *_, folder, _ = made
    with pytest.raises(FolderError, match=r"Give a BEIR folder, with corpus\.jsonl"):
        main([str(folder), str(tmp_path / "none"), "--query", "a"])
    with pytest.raises(ValueError, match=r"--query is of re-ranking, and .* has no ranker"):
        main([str(tmp_path), str(tmp_path), "--query", "a"])
    ranker = tmp_path / "ranker"
    ranker.mkdir()
    settings = json.loads((folder / "ranker" / "ranker.json").read_text())
    (ranker / "ranker.json").write_text(json.dumps(settings | {"format": 2}))
    with pytest.raises(FolderError, match="its format is 2, not 1"):
        SavedRanker(ranker)
    (ranker / "ranker.json").write_text(json.dumps(settings))
    with pytest.raises(FolderError, match=r"no ranker that this version reads: .*safetensors"):
        SavedRanker(ranker)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("first_stage", {"size": -3}, "got size=-3"),
        ("first_stage", {"weight": float("nan")}, "weight=nan"),
        ("tuned", {"2": [float("nan"), 3]}, r"rates > 0, .* got \[nan\]"),
        ("tuned", {"2": [0.3, -1]}, r"steps .* got \[-1\]"),
        ("scorer", {"widths": []}, r"asks for .*'layer1\.bias': \(1,\)"),
    ],
)
def test_edited_settings_are_refused(made, tmp_path, part, change, message):
    *_, folder, _ = made
    shutil.copytree(folder / "ranker", ranker := tmp_path / "ranker")
    settings = json.loads((ranker / "ranker.json").read_text())
    settings[part] |= change
    (ranker / "ranker.json").write_text(json.dumps(settings))
    with pytest.raises(FolderError, match=message):
        SavedRanker(ranker)
    del settings[part]
    (ranker / "ranker.json").write_text(json.dumps(settings))
    with pytest.raises(FolderError, match=f"ranker.json lacks {part}"):
        SavedRanker(ranker)


def test_rankings_that_would_be_arbitrary_are_refused(made):
    *_, folder, world = made
    ranker = SavedRanker(folder / "ranker")
    with pytest.raises(ValueError, match="no document has a word of the query 'nothing'"):
        ranker("nothing", world.documents)
    ranker.choices = {1: (1e30, 3)}
    with pytest.raises(ValueError, match=r"3 steps of rate 1e\+30 on the documents .* diverge"):
        ranker("topic0x1", TEN, ["d0"], ["d1"])


def test_another_encoder_in_the_same_place_is_refused(made, tmp_path):
    problem, phi, _, world = made
    elsewhere = tmp_path / "encoder"
    tiny_encoder(elsewhere, world.documents.values(), seed=1)
    made_of = dict(problem.pools.made_of)
    made_of["encoder"] = {"source": str(elsewhere), "max_length": 32}
    other = FewShotRanking(
        replace(problem.pools, made_of=made_of), problem.scorer, SGD(lr=0.3), shots=(2,)
    )
    ranker = SavedRanker(export(other, phi, tmp_path))
    with pytest.raises(FolderError, match="is another encoder than the one that this ranker was"):
        ranker("topic0x1", TEN)


def test_the_card_says_what_it_was_measured_on(made):
    problem, phi, folder, _ = made
    page = (folder / "ranker" / "README.md").read_text()
    train, validation, test = map(len, problem.split)
    assert f"generated: {train} queries for meta-training, {validation} for the choice" in page
    assert f"{test} for the test; the first 40 documents of BM25, without the feedback" in page
    assert "nDCG@20 of kNN with the same vectors, k = 2" in page
    figure = problem.test_ndcg(phi, 2).ndcg.mean().item()
    assert f"| nDCG@20, k = 2 | {figure:.4g} |" in page
    (scores,) = problem.fine_tuned(phi, problem.split.test, 2, [(0.3, 3)]).values()
    ranks = []
    for q, row in zip(problem.split.test.tolist(), scores.tolist(), strict=True):
        marked = problem.pools.feedback[q].flatten().tolist()
        order = sorted((i for i in range(40) if i not in marked), key=lambda i: -row[i])
        ranks.append(1 + next(r for r, i in enumerate(order) if problem.pools.grades[q, i] > 0))
    assert f"| MRR, k = 2 | {sum(1 / r for r in ranks) / len(ranks):.4g} |" in page
