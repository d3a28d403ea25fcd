"""The gate: what it refuses, what it lets through, its words, and how its limits are set."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from peftseg.errors import BadInput
from peftseg.gate import DIFFERENT, LIMITS, NO_BASIS, NOTHING, Limit, judge, status_of, summary
from peftseg.gate_fit import Trial, error_rates, fit_limits, rate
from peftseg.gate_measures import MEASURES, measures
from peftseg.site_evidence import Evidence
from peftseg.structure_facts import measure, summarise

SHAPE = (24, 24, 24)
SPACING = (2.0, 2.0, 2.0)
NAMES = ("ball", "stick")


def masks(ball=6.0, stick=12, scan=0, moved=0):
    """A ball and a stick of two pieces; `moved` voxels along the first axis."""
    at = np.indices(SHAPE)
    round_ = sum((a - c) ** 2 for a, c in zip(at, (8 + moved, 8, 8 + scan % 2), strict=True)) < ball**2
    long_ = np.zeros(SHAPE, bool)
    long_[19 - moved : 21 - moved, 18:20, 2 : 2 + stick] = stick > 0
    long_[19 - moved : 21 - moved, 21:23, 2 : 2 + stick] = stick > 0
    return {"ball": round_, "stick": long_ & ~round_}


def shattered(scan=0):
    """The ball is cut into four."""
    found = masks(scan=scan)
    found["ball"][8], found["ball"][:, 8] = False, False
    return found


def elongated(scan=0):
    """The ball is a cigar of its volume, around its centre."""
    at, centre, radii = np.indices(SHAPE), (8, 8, 12), (4.3, 4.3, 11.5)
    cigar = sum(((a - c) / r) ** 2 for a, c, r in zip(at, centre, radii, strict=True)) < 1
    return masks(scan=scan) | {"ball": cigar}


FACTS = {
    name: summarise([measure(masks(ball, stick, n)[name], SPACING) for n, (ball, stick) in enumerate(people)])
    for name in NAMES
    for people in [((5.8, 11), (6.0, 12), (6.2, 13), (6.4, 14), (5.9, 12))]
}


def evidence(found=None, early=0.8, stable=0.9, confident=0.9, edge=1.4, scans=5):
    """Evidence of scans with these masks, and the same agreement everywhere."""
    found = found or [masks(scan=n) for n in range(scans)]
    shapes = {name: [measure(m[name], SPACING) for m in found] for name in NAMES}

    def same(value):
        return {name: tuple(value if m[name].any() else math.nan for m in found) for name in NAMES}

    def of(key):
        return {name: tuple(math.nan if s[key] is None else s[key] for s in shapes[name]) for name in NAMES}

    return Evidence(
        structures=NAMES,
        early_agreement={} if early is None else same(early),
        transform_agreement=same(stable),
        volumes=of("volume_ml"),
        shapes={key: of(key) for key in ("elongation", "components", "scattered", "border_contact")},
        confident_share=same(confident),
        edge_contrast=same(edge),
        results=tuple(m["ball"] + 2 * m["stick"].astype(np.uint16) for m in found),
    )


def verdict(after, before=None, facts=FACTS):
    return judge(before or evidence(), after, facts)


def test_an_adaptation_that_changes_nothing_is_accepted_with_numbers():
    found = verdict(evidence())
    assert found.status == "accepted"
    assert "0.90" in found.reasons[0]


def test_an_adaptation_that_makes_results_stable_and_usual_is_accepted():
    poor = evidence(
        [masks(ball=4.0, stick=6, scan=n) for n in range(5)], early=0.5, stable=0.6, confident=0.7, edge=1.2
    )
    assert verdict(evidence(), poor).status == "accepted"


HARMS = {
    "a structure vanishes": evidence([masks(stick=0, scan=n) for n in range(5)]),
    "a structure vanishes in two of five scans": evidence([masks(stick=12 * (n > 1), scan=n) for n in range(5)]),
    "a structure shrinks to half": evidence([masks(ball=4.5, scan=n) for n in range(5)]),
    "a structure swells": evidence([masks(ball=8.5, scan=n) for n in range(5)]),
    "results depend on how the scan lies": evidence(stable=0.7),
    "the early and the final result part": evidence(early=0.5),
    "results leave the edges of the scan": evidence(edge=1.1),
    "results move away from what was stable": evidence([masks(scan=n, moved=3) for n in range(5)]),
    "a structure falls apart": evidence([shattered(n) for n in range(5)]),
    "a structure becomes long and thin": evidence([elongated(n) for n in range(5)]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_refused_with_a_reason_that_has_numbers(harm):
    found = verdict(HARMS[harm])
    assert found.status == "refused"
    assert len(found.reasons) >= 1
    assert any(character.isdigit() for character in found.reasons[0])


def test_a_structure_in_pieces_is_reason_enough_to_refuse():
    reasons = verdict(HARMS["a structure falls apart"]).reasons
    assert any(r.startswith("The ball falls apart or loses a part: on average 4.0 pieces") for r in reasons)


def test_an_unusual_shape_alone_is_worth_a_warning_that_says_so():
    long_ = evidence([elongated(n) for n in range(5)])
    found = judge(evidence(), long_, FACTS, {"elongation_worse": LIMITS["elongation_worse"]})
    assert found.status == "warning"
    assert found.reasons[0].startswith("The shape of the ball becomes unusual: it is 2.")


def test_confident_collapse_is_refused_though_everything_agrees():
    tiny = [masks(ball=1.5, stick=1, scan=n) for n in range(5)]
    found = verdict(evidence(tiny, early=1.0, stable=1.0, confident=1.0, edge=2.0))
    assert found.status == "refused"
    assert "ball" in found.reasons[0] or "stick" in found.reasons[0]


def test_scans_in_which_nothing_is_found_before_or_after_are_refused():
    nothing = evidence([masks(ball=0, stick=0) for _ in range(5)])
    assert verdict(nothing, nothing).status == "refused"
    assert judge(nothing, nothing, None).status == "refused"


def test_what_appears_where_the_base_found_nothing_is_refused_for_want_of_a_comparison():
    found = verdict(evidence([masks() for _ in range(5)]), evidence([masks(ball=0, stick=0) for _ in range(5)]))
    assert (found.status, found.reasons) == ("refused", (NO_BASIS,))


def test_models_that_find_nothing_in_common_are_refused_in_words_of_their_own():
    def one(name):
        return evidence([{other: m & (other == name) for other, m in masks(scan=n).items()} for n in range(5)])

    unstable = dict.fromkeys(NAMES, (math.nan,) * 5)
    before = replace(one("ball"), transform_agreement=unstable)
    assert verdict(one("stick"), before).reasons == (DIFFERENT,)
    assert verdict(evidence([masks(ball=0, stick=0) for _ in range(5)]), before).reasons == (NOTHING,)
    assert verdict(one("stick"), one("ball")).status == "refused"


def test_a_vanished_structure_is_seen_without_the_record_of_the_base():
    found = verdict(HARMS["a structure vanishes"], facts=None)
    assert found.status == "refused"
    assert "stick" in found.reasons[0]


def test_a_structure_that_training_scans_lack_may_be_missing():
    seldom = FACTS | {"stick": FACTS["stick"] | {"absent": 3}}
    without = evidence([masks(stick=0, scan=n) for n in range(5)])
    assert measures(evidence(), without, FACTS)["not_found"].value == 1.0
    assert math.isnan(measures(without, without, seldom)["not_found"].value) or (
        measures(without, without, seldom)["not_found"].value == 0
    )


def test_two_scans_and_a_missing_record_are_worth_a_warning():
    few = verdict(evidence(scans=2), evidence(scans=2))
    assert (few.status, "2 scans" in few.reasons[0]) == ("warning", True)
    unknown = verdict(evidence(), facts=None)
    assert (unknown.status, "ball, stick" in unknown.reasons[0]) == ("warning", True)


def test_a_network_without_early_head_is_judged_by_the_rest():
    found = verdict(evidence(early=None), evidence(early=None))
    assert found.status == "accepted"
    assert found.facts["checks"]["early_drop"]["value"] is None
    assert verdict(evidence(early=None, stable=0.7), evidence(early=None)).status == "refused"


def test_the_words_name_structure_and_volumes():
    found = verdict(HARMS["a structure shrinks to half"])
    usual = FACTS["ball"]["volume_ml"]
    words = next(r for r in found.reasons if r.startswith("The ball has"))
    assert f"{usual['min']:.3g} ml to {usual['max']:.3g} ml" in words
    assert all(reason[0].isupper() and reason.endswith(".") for reason in found.reasons)


def test_the_facts_are_plain_json_without_masks():
    found = verdict(evidence([masks(ball=0, stick=0) for _ in range(5)]))
    data = json.loads(json.dumps(found.facts, allow_nan=False))
    assert data["scans"] == 5
    assert set(data["checks"]) == set(MEASURES)
    assert summary(evidence())["volume_ml"].keys() == set(NAMES)


def test_every_limit_belongs_to_a_measure_and_warns_before_it_refuses():
    assert set(LIMITS) <= set(MEASURES)
    assert all(limit.warn <= limit.refuse for limit in LIMITS.values())


def test_a_value_at_the_limit_passes_and_one_above_does_not():
    limits = {"x": Limit(1.0, 2.0)}
    assert [status_of({"x": v}, limits) for v in (1.0, 1.5, 2.0, 2.1)] == ["accepted", "warning", "warning", "refused"]
    assert status_of({"x": math.nan}, limits) == "refused"


def made_up_trials(number, seed):
    """Harm shows in `a` or in `b`; `noise` says nothing; a few are unclear."""
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(number):
        gain = float(rng.choice([-0.2, 0.0, 0.1]))
        shows = rng.choice(["a", "b"])
        values = {"noise": rng.normal(), "a": rng.normal(0, 0.1), "b": rng.normal(0, 0.1)}
        trials.append(Trial(values | ({shows: rng.normal(1, 0.2)} if gain < 0 else {}), gain))
    return trials


def test_fitted_limits_find_what_tells_harm_and_hold_on_other_trials():
    limits = fit_limits(made_up_trials(150, 0), ("noise", "a", "b"))
    assert set(limits) == {"a", "b"}
    rates = error_rates(made_up_trials(300, 1), limits)
    assert rates["harmful accepted"].share < 0.05
    assert rates["helpful refused"].share < 0.05
    assert all(limit.warn <= limit.refuse for limit in limits.values())


def test_limits_do_not_follow_a_single_trial():
    calm = [Trial({"a": 0.0}, 0.1) for _ in range(20)] + [Trial({"a": 0.0}, -0.1) for _ in range(20)]
    assert fit_limits([*calm, Trial({"a": 5.0}, -0.1)], ("a",)) == {}


def test_a_check_that_is_not_needed_may_still_get_a_limit_far_beyond_what_helps():
    helpful = [Trial({"a": 0.0, "b": 0.01 * n}, 0.1) for n in range(21)]
    harmful = [Trial({"a": 1.0, "b": 0.9 if n < 5 else 0.0}, -0.1) for n in range(20)]
    assert set(fit_limits([*helpful, *harmful], ("a", "b"))) == {"a"}
    limits = fit_limits([*helpful, *harmful], ("a", "b"), always=("b",))
    assert 0 < limits["a"].refuse < 1
    assert limits["b"].refuse == pytest.approx(0.3)  # 0.2 is the most that helped, 0.1 the middle


def test_what_changes_little_is_not_refused_where_that_catches_no_more_harm():
    helpful = [Trial({"a": 0.0}, 0.1) for _ in range(20)]
    neutral = [Trial({"a": 0.6}, 0.0) for _ in range(20)]
    harmful = [Trial({"a": 1.0}, -0.1) for _ in range(20)]
    assert 0.6 < fit_limits([*helpful, *neutral, *harmful], ("a",))["a"].refuse < 1
    assert 0 < fit_limits([*helpful, *neutral, *(Trial({"a": 0.5}, -0.1) for _ in range(20))], ("a",))["a"].refuse < 0.5


def test_limits_need_harmful_and_helpful_trials():
    with pytest.raises(BadInput):
        fit_limits([Trial({"a": 0.0}, 0.1)], ("a",))


def test_rates_count_warnings_as_accepted_and_leave_out_what_changes_little():
    limits = {"x": Limit(1.0, 2.0)}
    trials = [Trial({"x": v}, g) for v, g in ((0, -0.1), (1.5, -0.1), (3, -0.1), (3, 0.1), (0, 0.1), (3, 0.005))]
    rates = error_rates(trials, limits)
    assert (rates["harmful accepted"].count, rates["harmful accepted"].total) == (2, 3)
    assert rates["harmful accepted without a warning"].count == 1
    assert (rates["helpful refused"].count, rates["helpful refused"].total) == (1, 2)
    assert rates["neutral refused"].total == 1


def test_intervals_are_wilsons():
    found = rate(0, 60)
    assert (found.share, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.0602, abs=5e-4)
    half = rate(5, 10)
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert math.isnan(rate(0, 0).share)


def test_a_guard_refuses_only_what_is_far_beyond_and_leaves_the_search_alone():
    trials = [Trial({"departure": 0.1 * n, "pieces_worse": 0.1 * n}, 0.05 if n < 5 else -0.05) for n in range(10)]
    alone = fit_limits(trials, ["departure"])
    guarded = fit_limits(trials, ["departure"], guards=["pieces_worse"])
    assert guarded["departure"] == alone["departure"]
    assert guarded["pieces_worse"].refuse == pytest.approx(0.4 + 1.0)
    assert guarded["pieces_worse"].warn <= 0.4
