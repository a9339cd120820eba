"""The words that an attribute of a DICOM image may have: the standard's defined terms, and public names of vendors.

Whatever a file says, only words from these lists (or numbers) get through; model names alone are free text, and
``deidentify`` scrubs them.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODALITIES = _words(
    "AS BDUS BMD CD CF CR CS CT DD DF DG DM DMS DS DX EC ECG EM EPS ES FA FS GM HC IO IVOCT IVUS KER LP LS MA MG MR MS "
    "NM OAM OCT OP OPM OPT OPTBSV OPTENF OT PA PT PX RF RG RTIMAGE SM ST TG US VA VF XA XC"
)
"""Modality (0008,0060): image modalities of PS3.3 C.7.3.1.1.1, retired ones included."""

BODY_PARTS = _words(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF "
    "CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY "
    "CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD "
    "HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LLEG LSPINE LSSPINE LUMBAR "
    "LUNG MAXILLA MEDIASTINUM MOUTH NASOPHARYNX NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY "
    "PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RIB SACRUM SCALP SCAPULA SCLERA "
    "SCROTUM SELLA SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORAX THUMB THYMUS "
    "THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA UMBILICUS URETER URETHRA UTERUS VAGINA "
    "VULVA WHOLEBODY WRIST ZYGOMA"
)
"""Body Part Examined (0018,0015): PS3.16 Annex L, the terms that images of people have, blanks left out."""

VIEWS = _words(
    "AP PA LL RL RLD LLD RLO LLO LAO RAO LPO RPO LAT LATERAL OBL OBLIQUE AX AXIAL SAG SAGITTAL COR CORONAL SUNRISE "
    "MLO CC ML LM LMO SIO ISO XCCL XCCM XCC CV FB AT RM RL LATERO TAN CV AC LEV MED TOWNE WATERS CALDWELL"
)
"""View Position (0018,5101): PS3.3 C.8.11.1 and C.8.11.7, and what vendors commonly write."""

LATERALITIES = frozenset(("R", "L", "U", "B"))

PHOTOMETRICS = frozenset(
    ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
)

VENDORS = {
    "agfa": "Agfa",
    "aloka": "Aloka",
    "barco": "Barco",
    "bruker": "Bruker",
    "canon": "Canon",
    "carestream": "Carestream",
    "carl zeiss": "Zeiss",
    "dentsply": "Dentsply Sirona",
    "elekta": "Elekta",
    "esaote": "Esaote",
    "fuji": "Fujifilm",
    "ge medical": "GE",
    "ge healthcare": "GE",
    "ge vingmed": "GE",
    "general electric": "GE",
    "heidelberg engineering": "Heidelberg Engineering",
    "hitachi": "Hitachi",
    "hologic": "Hologic",
    "kodak": "Kodak",
    "konica": "Konica Minolta",
    "leica": "Leica",
    "lodox": "Lodox",
    "lumisys": "Lumisys",
    "mindray": "Mindray",
    "neusoft": "Neusoft",
    "nikon": "Nikon",
    "olympus": "Olympus",
    "philips": "Philips",
    "picker": "Picker",
    "planmeca": "Planmeca",
    "samsung": "Samsung",
    "shimadzu": "Shimadzu",
    "siemens": "Siemens",
    "sirona": "Dentsply Sirona",
    "supersonic imagine": "SuperSonic Imagine",
    "swissray": "Swissray",
    "topcon": "Topcon",
    "toshiba": "Toshiba",
    "united imaging": "United Imaging",
    "varian": "Varian",
    "vidar": "Vidar",
    "ziehm": "Ziehm",
    "zeiss": "Zeiss",
}
"""How a Manufacturer (0008,0070) begins, in small letters, and the name that is stored for it."""

MODEL_WORDS = _words(
    "achieva acuson aera aerodr affiniti affirm airis allura alphenix altaire ambition amira ampla aplio apollo "
    "aquilion arcadis artis artiste as+ aspire avanto axiom azurion biograph bodytom bravo brightspeed brilliance "
    "brivo centricity clarity clearvue clinix compressor confidence coronado definition definium desktop diamond "
    "digitaldiagnost dimension dimensions directview discovery drive drx dual duet echelon eclipse edge elara eleva "
    "elite elition emotion encore ensite epiq espree essenta essential evolution excel excite exelart expert fcr fdr "
    "fire flash flow fluorospot force free fuji galan gemini genesis go.all go.now go.sim go.top go.up gyroscan "
    "harmony hdxt hispeed horizon hybrid icono ict igs imager incisive infinia infinix ingenia ingenuity innova "
    "insight inspira inspiration integris intera intuition invenia irs juniper kodak lightspeed logiq lorad lumina "
    "luminos lumos magnetom mammomat max maxima medrad mobile mobilediagnost mobilett mosaic mr multix neuviz nova "
    "novation novus oasis omni one open optima orian outlook panorama pcr performa perspective philips plus portable "
    "power precision premium prestige prima prime prisma pristina prizm pro prospeed prosperity radspeed reader "
    "regius resona resonance revelation revolution rotate scenaria scope select selenia senographe sens sensation "
    "sensis sequoia signa skyra smart sola somatom sonata sonialvision sonos spectral spirit star supria symbia "
    "symphony system tempo tim titan trio trium triumph uct ultra ultrasound umi umr unity upgrade vantage vario "
    "ventri verio versana verse vida vision vista viva vivid vivix voluson voyager workstation xcelera xper ysio zee "
    "zenition"
)
"""Words of the names under which scanners and detectors are sold, in small letters."""

KERNEL_WORDS = _words(
    "STANDARD STND SOFT LUNG DETAIL BONE BONEPLUS EDGE CHEST ULTRA ASIR BODY BRAIN HEAD SHARP SMOOTH HRES "
    "SMOOTHER SHARPER NORMAL MEDIUM"
)
"""Convolution Kernel (0018,1210) as words; patterns such as ``B30f``, ``FC08`` or ``YA`` besides."""

MODEL_CODE = re.compile(r"[A-Za-z]{1,2}\+?|\d{1,3}|(?=.{1,7}$)[A-Za-z]{0,3}[-.]?\d{1,3}(\.\d)?[A-Za-z]{0,2}\+?")
"""A short code in a model's name, such as ``1.5T`` or ``CT5``."""
_PLACE_WORDS = _words("scanner device unit machine room detector system portable mobile x-ray xray ct mri us")
_VENDOR_WORDS = frozenset(
    word for names in (VENDORS, VENDORS.values()) for name in names for word in name.casefold().split()
)


def device_words(text: str) -> bool:
    """Whether ``text`` names a device in nothing but known words and short codes: ``Siemens Ysio``, ``scanner 2``."""
    words = text.casefold().replace("_", " ").split()
    known = MODEL_WORDS | _VENDOR_WORDS | _PLACE_WORDS
    parts = [part for word in words for part in ([word] if word in known else word.split("-"))]
    return bool(parts) and all(part in known or MODEL_CODE.fullmatch(part) for part in parts)
