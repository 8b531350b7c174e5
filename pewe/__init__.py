"""pewe: Parameter-Efficient Weight Ensembling (Lv et al., ACL 2023), reproduced and extended."""
