"""The report's footnotes: what each term means and where the definition comes from."""

DEFINITIONS: dict[str, tuple[str, str]] = {
    "interval": (
        "95% interval",
        "2.5th to 97.5th percentile of the measure over resamples of patients (or of the groups by "
        "which the data were split) drawn with replacement. The resamples are the same for all "
        "rows. It says how much the number depends on who was tested, not on the training run. "
        "Efron and Tibshirani, An Introduction to the Bootstrap, 1993.",
    ),
    "auroc": (
        "AUROC",
        "probability that a positive is scored above a negative, ties counting one half "
        "(Mann-Whitney). 0.5 is chance. Hanley and McNeil, Radiology 143, 1982.",
    ),
    "auprc": (
        "AUPRC",
        "average precision: precision at each distinct score, weighted by the gain in recall, "
        "without interpolation. Chance is the share of positives, so compare it only within one "
        "task. Davis and Goadrich, ICML 2006.",
    ),
    "c_index": (
        "C-index",
        "among pairs of people whose order of events is known, the share in which the higher risk "
        "went to the earlier event, ties counting one half. 0.5 is chance. Harrell et al., JAMA "
        "247, 1982.",
    ),
    "brier": (
        "Brier score",
        "mean squared distance between predicted probability and outcome; lower is better. "
        "Predicting the prevalence p for everyone gives p(1 \N{MINUS SIGN} p). Brier, Monthly "
        "Weather Review 78, 1950.",
    ),
    "ece": (
        "ECE",
        "expected calibration error: distance between mean prediction and observed share within "
        "bins of the predictions of equal size, averaged with the bins' sizes as weights; lower is "
        "better. It is above zero by chance alone. Naeini et al., AAAI 2015.",
    ),
    "ece_floor": (
        "ECE by chance",
        "the ECE that these predictions would show on average if they were perfectly calibrated.",
    ),
    "p_value": (
        "p",
        "two-sided, from the same resamples: twice the share in which the difference falls on the "
        "other side of zero. It cannot be smaller than two over the number of resamples, and it "
        "is not corrected for the number of comparisons.",
    ),
    "difference": (
        "Paired difference",
        "the measure of the first row minus that of the second on the same people, with its "
        "interval from the same resamples. The interval of the difference, not the overlap of two "
        "intervals, tells whether two rows differ.",
    ),
    "oracle": (
        "Oracle",
        "the true risk given the simulator's hidden state, which no model sees. An upper bound: "
        "what is left to gain lies between a row and the oracle.",
    ),
    "late_fusion": (
        "Late fusion",
        "two models trained apart, one per kind of data, and joined only afterwards.",
    ),
    "tabular": (
        "Tabular rows",
        "models on hand-made features of the same input (last value, time since, counts, means, "
        "summaries of the wearable), without any pretraining.",
    ),
    "reliability": (
        "Reliability diagram",
        "predictions in up to ten bins of equal size: mean prediction against the share of "
        "positives, with Wilson's 95% interval (JASA 22, 1927), which takes predictions as "
        "independent and so is narrow where a person counts several times.",
    ),
    "pca": (
        "Principal components of z",
        "directions of largest variance of the latent state over the time points of all patients "
        "shown; the sign of a component carries no meaning.",
    ),
}
