"""The example that the help of each command ends with; those about the folder `results` read what that of `run` writes."""

EXAMPLES = {
    "quickstart": "bdjax quickstart --out first",
    "run": "bdjax run --attack badnets --defense ft fp clp --poison-ratio 0 0.1 --seeds 0 1 --width 8 --epochs 20 --batch 64 "
    "--config recipe.lr=0.1 --hyper ft.lr=0.01,0.003 --out results",
    "sweep": "bdjax sweep experiments/cifar10_badnets.py --scale small --data-dir ~/archives --out cifar10 --only defense=fp",
    "plan": "bdjax plan experiments/survey.py --only attack=badnets --no-tune --no-memory",
    "ls": "bdjax ls defenses fp",
    "check": "bdjax check experiments/survey.py --scale small --data-dir ~/archives --out survey",
    "data": "bdjax data prepare cifar10 --data-dir ~/archives --download",
    "status": "bdjax status results",
    "report": "bdjax report results",
    "reproduce": "bdjax reproduce results --defense clp --seed 0 --poison-ratio 0.1",
    "cite": "bdjax cite results",
    "show-attack": "bdjax show-attack badnets sig --dataset digits --config badnets.size=4 --out triggers.png",
    "export-data": "bdjax export-data badnets --dataset digits --poison-ratio 0.1 --form arrays --out poisoned",
    "compare-masks": "bdjax compare-masks results fp clp",
    "pruning-curve": "bdjax pruning-curve results clp",
    "verdicts": "bdjax verdicts results --csv",
    "import-torch": "bdjax import-torch attack_result.pt --dataset cifar10 --poison-ratio 0.1 --out imported",
    "export-torch": "bdjax export-torch results network.pt --kind state_dict --defense clp --seed 0 --poison-ratio 0.1",
}
