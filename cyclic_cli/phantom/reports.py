"""Writes the synthetic radiology report of a study from its findings, by a grammar.

Every table below holds interchangeable wordings. The placeholders {side}, {site} and {severity} are replaced by the
finding's own words, so the text always agrees with the truth table. Capitalised placeholders such as {Severity} start a
sentence. `SEVERITY_WORDS` lists all adjectives that can express each severity.
"""

import numpy as np

from cyclic_cli.phantom.findings import FINDINGS, Finding

STANDARD_NORMAL = (
    "FINDINGS: The heart is normal in size. The mediastinal contours are within normal limits. "
    "The lungs are clear. No pleural effusion or pneumothorax. No acute bony abnormality.\n"
    "IMPRESSION: No acute cardiopulmonary abnormality."
)
"""The text that many studies without a finding share word for word."""
STANDARD_NORMAL_SHARE = 0.46
"""Fraction of the studies without a finding that have this text.

Studies without a finding are 43 % of all, so about a fifth of all reports have this text."""

SEVERITY_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "cardiomegaly": {"mild": ("mild",), "moderate": ("moderate",), "severe": ("severe", "marked")},
    "pleural_effusion": {
        "mild": ("small", "minor"),
        "moderate": ("moderate", "medium-sized"),
        "severe": ("large", "massive"),
    },
    "consolidation": {"mild": ("faint", "mild"), "moderate": ("moderate",), "severe": ("dense", "severe")},
    "nodule": {"mild": ("tiny", "small"), "moderate": ("medium-sized", "mid-sized"), "severe": ("large", "sizeable")},
    "pneumothorax": {
        "mild": ("small", "minor"),
        "moderate": ("moderate", "medium-sized"),
        "severe": ("large", "sizeable"),
    },
    "fracture": {"mild": ("minimal",), "moderate": ("moderate",), "severe": ("marked", "severe")},
}

WORDINGS = {
    "cardiomegaly": (
        "There is {severity} cardiomegaly.",
        "{Severity} enlargement of the cardiac silhouette.",
        "The heart shows {severity} enlargement.",
        "The cardiothoracic ratio is increased, in keeping with {severity} cardiomegaly.",
        "{Severity} cardiac enlargement is present.",
        "The cardiac shadow is widened, consistent with {severity} cardiomegaly.",
        "Cardiomegaly of {severity} degree.",
        "Heart size is above normal, with {severity} enlargement.",
        "The transverse diameter of the heart is increased to a {severity} degree.",
        "Appearances are those of {severity} cardiomegaly.",
        "{Severity} cardiomegaly with prominence of the left ventricular border.",
        "The heart is enlarged; the degree is {severity}.",
    ),
    "pleural_effusion": (
        "There is a {severity} {side} pleural effusion.",
        "{Severity} pleural effusion on the {side}.",
        "A {severity} amount of {side} pleural fluid with blunting of the costophrenic angle.",
        "{Side} pleural effusion, {severity} in volume.",
        "Blunting of the {side} costophrenic angle indicates a {severity} effusion.",
        "{Side} basal opacity with a meniscus, consistent with a {severity} pleural effusion.",
        "A {severity} effusion layers in the {side} pleural space.",
        "The {side} costophrenic angle is obscured by a {severity} pleural effusion.",
        "{Severity} {side} effusion with adjacent compressive change.",
        "Pleural fluid is seen on the {side}; the amount is {severity}.",
        "Appearances suggest a {severity} {side} pleural effusion.",
    ),
    "consolidation": (
        "There is {severity} consolidation in the {side} {site}.",
        "{Severity} airspace opacity in the {side} {site}.",
        "{Side} {site} consolidation, {severity} in degree.",
        "An area of {severity} opacification occupies the {side} {site}.",
        "{Severity} airspace disease of the {side} {site}, suspicious for pneumonia.",
        "The {side} {site} shows {severity} consolidation.",
        "Ill-defined {severity} opacity projects over the {side} {site}.",
        "{Severity} {side} {site} infiltrate, compatible with infection.",
        "Focal {severity} consolidation involves the {side} {site}.",
        "Increased density in the {side} {site} represents {severity} consolidation.",
        "{Severity} parenchymal opacification of the {side} {site}.",
    ),
    "nodule": (
        "There is a {severity} nodule in the {side} {site}.",
        "A {severity} rounded opacity projects over the {side} {site}.",
        "{Severity} pulmonary nodule, {side} {site}.",
        "A {severity} solitary nodule lies in the {side} {site}.",
        "A well-defined {severity} nodule is noted in the {side} {site}.",
        "Nodular opacity in the {side} {site}, {severity}; computed tomography is advised.",
        "The {side} {site} contains a {severity} nodule.",
        "{Severity} round lesion in the {side} {site}.",
        "In the {side} {site} there is a {severity} nodular density.",
        "A single {severity} lung nodule is seen in the {side} {site}.",
        "{Side} {site} nodule, {severity}, not calcified.",
    ),
    "pneumothorax": (
        "There is a {severity} {side} pneumothorax.",
        "{Severity} {side} pneumothorax with a visible pleural line.",
        "{Side} pneumothorax, {severity} in size.",
        "A visceral pleural line is seen on the {side}, indicating a {severity} pneumothorax.",
        "A {severity} pneumothorax is present on the {side}.",
        "Lung markings are absent at the {side} apex, consistent with a {severity} pneumothorax.",
        "Partial collapse of the {side} lung from a {severity} pneumothorax.",
        "{Severity} apical pneumothorax, {side}.",
        "Air in the {side} pleural space: {severity} pneumothorax.",
        "Appearances of a {severity} {side} pneumothorax without mediastinal shift.",
        "The {side} lung is separated from the chest wall by a {severity} pneumothorax.",
    ),
    "pacemaker": (
        "A {side} {site} pacemaker is in place.",
        "{Side} chest wall {site} pacemaker with leads in expected position.",
        "{Site} pacemaker on the {side}.",
        "A {site} pacing device overlies the {side} upper chest.",
        "{Side} subclavian {site} pacemaker noted.",
        "There is a {site} cardiac pacemaker, generator on the {side}.",
        "Pacemaker generator in the {side} pectoral region, {site}.",
        "{Side} pectoral {site} pacemaker; no lead fracture.",
        "A {site} pacemaker has been implanted on the {side}.",
        "Status post {side} {site} pacemaker placement.",
        "{Site} pacing system with the generator over the {side} chest.",
    ),
    "fracture": (
        "There is a fracture of the {side} {site} with {severity} displacement.",
        "{Side} {site} fracture, {severity} displacement.",
        "Fractured {side} {site} with {severity} step-off.",
        "A fracture of the {side} {site} shows {severity} displacement.",
        "Cortical break in the {side} {site} with {severity} displacement.",
        "{Severity} displacement at a fracture of the {side} {site}.",
        "The {side} {site} is fractured; displacement is {severity}.",
        "Rib fracture on the {side}: {site}, {severity} displacement.",
        "Discontinuity of the {side} {site} in keeping with a fracture, {severity} offset.",
        "Acute-appearing {side} {site} fracture with {severity} offset.",
        "Step-off deformity of {severity} degree at the {side} {site}, representing a fracture.",
    ),
}

BILATERAL_EFFUSION = (
    "There are {severity} bilateral pleural effusions.",
    "{Severity} bilateral pleural effusions.",
    "Bilateral pleural effusions, {severity} in volume.",
    "Blunting of the bilateral costophrenic angles indicates {severity} effusions.",
    "Bilateral basal opacities with a meniscus, consistent with {severity} pleural effusions.",
    "{Severity} bilateral effusions with adjacent compressive change.",
    "Appearances suggest {severity} bilateral pleural effusions.",
    "Bilateral pleural fluid; the amount is {severity}.",
    "The bilateral costophrenic angles are obscured by {severity} pleural effusions.",
    "A {severity} amount of bilateral pleural fluid.",
)
"""Replaces `WORDINGS["pleural_effusion"]` where both sides are affected."""

NEGATIONS = {
    "cardiomegaly": (
        "The heart is not enlarged.",
        "Heart size is normal.",
        "No cardiomegaly.",
        "The cardiac silhouette is within normal limits.",
    ),
    "pleural_effusion": (
        "No pleural effusion.",
        "The costophrenic angles are sharp.",
        "There is no pleural fluid.",
        "No evidence of effusion.",
    ),
    "consolidation": (
        "No consolidation.",
        "No focal airspace opacity.",
        "The lungs are free of consolidation.",
        "No evidence of pneumonia.",
    ),
    "nodule": ("No pulmonary nodule.", "No suspicious nodule is seen.", "No focal lung lesion."),
    "pneumothorax": ("No pneumothorax.", "There is no pneumothorax.", "No evidence of pneumothorax."),
    "pacemaker": ("No pacing device.", "No implanted device is seen."),
    "fracture": (
        "No displaced rib fracture.",
        "The bony thorax is intact.",
        "No acute osseous abnormality.",
        "No fracture is identified.",
    ),
}

NORMAL = (
    "Normal chest radiograph.",
    "The lungs are clear and well expanded.",
    "Clear lungs.",
    "Cardiomediastinal contours are unremarkable.",
    "Normal cardiac and mediastinal contours.",
    "Lungs and pleural spaces are clear.",
    "No acute abnormality in the chest.",
    "Unremarkable study of the chest.",
    "The pulmonary vasculature is normal.",
    "No active disease is seen.",
    "No acute intrathoracic process.",
)
NORMAL_IMPRESSIONS = (
    "No acute cardiopulmonary process.",
    "Normal chest.",
    "No acute abnormality.",
    "No radiographic evidence of acute disease.",
    "Negative chest radiograph.",
)
FILLERS = (
    "The trachea is midline.",
    "The aortic contour is normal for age.",
    "The hila are unremarkable.",
    "The upper abdomen is unremarkable.",
    "Soft tissues are within normal limits.",
    "Degenerative change in the spine.",
    "The film is slightly rotated.",
    "Adequate inspiration.",
    "The mediastinum is not widened.",
    "Pulmonary vascularity is within normal limits.",
)
INDICATIONS = (
    "Cough.",
    "Shortness of breath.",
    "Chest pain.",
    "Fever.",
    "Preoperative assessment.",
    "Follow-up.",
    "Dyspnoea.",
    "Fall.",
    "Routine check.",
    "Smoker with persistent cough.",
    "Known heart disease.",
    "Fatigue and weight loss.",
)
INDICATION_HEADINGS = ("INDICATION: {}", "HISTORY: {}", "CLINICAL INFORMATION: {}", "Indication: {}")
FIRST_COMPARISONS = ("COMPARISON: None.", "No prior study for comparison.", "COMPARISON: None available.")
LATER_COMPARISONS = (
    "COMPARISON: Prior chest radiograph.",
    "Compared with the previous study.",
    "COMPARISON: Earlier radiograph of the same patient.",
)
TECHNIQUES = {
    ("PA",): "PA view of the chest.",
    ("AP",): "Portable AP view of the chest.",
    ("LL",): "Lateral view of the chest.",
    ("PA", "LL"): "PA and lateral views of the chest.",
    ("AP", "LL"): "AP and lateral views of the chest.",
}


def write_report(
    findings: tuple[Finding, ...], views: tuple[str, ...], first: bool, generator: np.random.Generator
) -> str:
    """The report of one study, with one section per line. `first` says whether it is the patient's first study."""
    if not findings and generator.random() < STANDARD_NORMAL_SHARE:
        return STANDARD_NORMAL
    sentences = _body(findings, generator)
    headed = generator.random() < 0.6
    lines = []
    if generator.random() < 0.7:
        lines.append(_pick(INDICATION_HEADINGS, generator).format(_pick(INDICATIONS, generator)))
    if generator.random() < 0.4:
        lines.append(_pick(FIRST_COMPARISONS if first else LATER_COMPARISONS, generator))
    if generator.random() < 0.5:
        lines.append(TECHNIQUES[views])
    lines.append(("FINDINGS: " if headed else "") + " ".join(sentences))
    if headed:
        lines.append("IMPRESSION: " + _impression(findings, generator))
    return "\n".join(lines)


def _body(findings: tuple[Finding, ...], generator: np.random.Generator) -> list[str]:
    """Sentences on all findings that are present, followed by some negations and general remarks."""
    present = [word_finding(finding, generator) for finding in findings]
    if not findings:
        present = [_pick(NORMAL, generator)]
    absent = [name for name in FINDINGS if name not in [finding.name for finding in findings]]
    denied = generator.choice(absent, size=min(len(absent), int(generator.integers(1, 5))), replace=False)
    remarks = [_pick(NEGATIONS[str(name)], generator) for name in denied]
    chosen: list[int] = generator.permutation(len(FILLERS))[: int(generator.integers(0, 3))].tolist()
    remarks += [FILLERS[place] for place in chosen]
    order: list[int] = generator.permutation(len(remarks)).tolist()
    return present + [remarks[place] for place in order]


def _impression(findings: tuple[Finding, ...], generator: np.random.Generator) -> str:
    if not findings:
        return _pick(NORMAL_IMPRESSIONS, generator)
    texts = [word_finding(finding, generator) for finding in findings]
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def word_finding(finding: Finding, generator: np.random.Generator) -> str:
    """One sentence that states the finding, in a randomly chosen wording."""
    severity = _pick(SEVERITY_WORDS[finding.name][finding.severity], generator) if finding.severity else ""
    words = {"side": finding.side, "site": finding.site, "severity": severity}
    words |= {name.capitalize(): word.capitalize() for name, word in words.items()}
    wordings = BILATERAL_EFFUSION if finding.side == "bilateral" else WORDINGS[finding.name]
    return _pick(wordings, generator).format(**words)


def _pick(table: tuple[str, ...], generator: np.random.Generator) -> str:
    return table[int(generator.integers(len(table)))]
